"""The asymmetric instruction study: what a matrix instruction of 8-bit by 4-bit operands would be worth.

Such an instruction adds into 16 bits, so that all three operands fill a vector and the products per instruction
double. ``emulate`` says what it computes, to the bit; ``throughput`` and ``systolic`` how long it takes.
"""
