"""Shows samples: their statistics, a page of pictures, a trajectory played in the terminal."""
