"""PDF files: their texts, figures and pages, each file read in a process of its own."""
