"""Results as tables, plots and pages. This package measures nothing and loads no model."""
