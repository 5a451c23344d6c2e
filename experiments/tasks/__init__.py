"""What is asked of features? One file a question."""
