"""What a person sees: figures, the browser, the report."""
