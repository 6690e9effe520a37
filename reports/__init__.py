"""Everything a person looks at: scores, curves, pages."""
