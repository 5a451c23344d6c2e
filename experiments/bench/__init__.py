"""How fast: every row measured side by side with what people use today, or estimated by the compiler and called so."""
