"""Where does a converted network go wrong, and why?

Both networks are run on the same samples. Every operator of the target is fed with the *source's* values wherever a
tensor is known to correspond (isolated replay), so that an error shows where it is made and nowhere else; tensors are
paired by their values and the order of their axes, never by name alone. For each place found, changes are tried from
the cheapest on; the first that makes the replay agree is the explanation, and what :mod:`dlas.verify.repair` applies.

After Louloudakis, Gibson, Cano and Rajan, "Fault Localization for Buggy Deep Learning Framework Conversions in Image
Recognition" (2023) and "Fix-Con" (2023), whose published procedure is the strategy ``fetafix`` of the repair; replay
and explanation are dlas's own.
"""
