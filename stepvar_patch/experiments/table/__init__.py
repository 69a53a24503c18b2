"""The paper's tables: arms as rows, metrics as columns."""
