"""Publishing models: the gate, snapshots, the model directory, and scoring from a snapshot."""
