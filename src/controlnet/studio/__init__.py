"""The studio: one web app (Gradio) for every control, and for training new ones."""
