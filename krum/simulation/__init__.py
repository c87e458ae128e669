"""From one cell to its curves: data, models, gradients, attacks, rounds."""
