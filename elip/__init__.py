"""The fixed apparatus: METER, tasks, data, training, cost, and the run record."""
