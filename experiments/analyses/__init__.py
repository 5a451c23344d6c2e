"""What is shown? One file is one section of the page and one runnable part."""
