"""The engine of dlas: any layer by any kernel or back end, in one static plan.

``lower`` and ``passes`` make the network, ``select`` chooses kernels and layouts, ``memory`` places the values,
``program`` puts the native program together, ``portfolio`` judges whole networks, ``plan`` stores the outcome.
"""
