"""Distribution matching distillation, and how much a student copies its teacher's map."""
