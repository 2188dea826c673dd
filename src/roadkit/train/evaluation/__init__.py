"""How good a model is: metrics of its predictions, and base, tuned and merged model side by side."""
