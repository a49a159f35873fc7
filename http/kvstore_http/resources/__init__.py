"""What answers at each route, one module for each kind."""
