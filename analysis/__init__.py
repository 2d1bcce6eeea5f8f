"""From run records to tables, figures and a report. Reads files only and never imports torch."""
