"""The report: tables, plots and the page, made from records."""
