"""Every form in which pairs come, one module each; `recognise.py` has their table."""
