"""The Hessian of n-shortcut networks at zero weights, and gradient descent near that point."""
