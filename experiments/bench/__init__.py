"""How fast: every row measured side by side with what people use today, or estimated by the compiler and called so."""

import os

# XLA's LAPACK calls come from several threads at once; OpenBLAS's own threads below each of them made them wait on one another, some for
# ever (NOTES.md). It reads its setting when it is loaded, so this stands before any import; opponents set their own number of threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
