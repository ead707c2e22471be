"""MIR inside trainings that are not the Trainer's."""
