"""Pictures from prompts and hints: units, guidance, the sampling loop, and the pipeline that joins them."""
