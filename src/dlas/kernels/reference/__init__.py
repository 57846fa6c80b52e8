"""What every kernel means: plain NumPy functions, one file per family of operators.

Real arithmetic accumulates in float64 and is cast to float32 once, at the end; integer arithmetic is exact. A native
kernel is right when it equals the function of the same name here: to the bit where the format is integer, within the
rounding of float32 otherwise. Speed is of no account.
"""
