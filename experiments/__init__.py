"""Programs a person runs: data sets, protocols, the resumable study, figures, the report."""

import os

# XLA's LAPACK calls come from several threads at once; OpenBLAS's own threads below each of them make them wait on one another, some for
# ever (bench/NOTES.md). It reads its setting when it is loaded, so this stands before any import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
