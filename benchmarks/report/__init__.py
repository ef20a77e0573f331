"""Results as JSON, tables, plots and pages. Knows no model."""
