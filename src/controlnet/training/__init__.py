"""Training: the loss as a formula (`loss.py`), the run around it (`run.py`)."""
