"""The only code that touches somebody's model. It is handed methods and names none."""
