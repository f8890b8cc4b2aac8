"""The command `controlnet`: one small module for each of its commands, `main.py` to choose among them."""
