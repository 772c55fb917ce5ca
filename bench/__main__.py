"""Every measurement, one after the other."""

from bench import cost

cost.main()
