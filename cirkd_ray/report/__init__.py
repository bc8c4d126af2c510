"""TensorBoard content, tables, plots and pictures."""
