"""``python -m whtnet.bench TASK``, see :mod:`whtnet.bench.measure`."""

from whtnet.bench.measure import main

main()
