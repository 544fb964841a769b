"""What the outside may ask of the books: one module a gRPC service."""
