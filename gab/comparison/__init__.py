"""Do two arms of runs differ, and by how much: what `scripts/compare.py` and `scripts/aa_study.py` compute and write.

Needs SciPy and, for its pictures, matplotlib (the extra `train`), so `import gab` leaves it out.
"""
