"""Tables and figures made from what the tasks return."""
