"""What a person sees: figures, the browser, the atlas, the report."""
