"""The engines behind the server: what the routes need of one, each engine, and the fair queue before them."""
