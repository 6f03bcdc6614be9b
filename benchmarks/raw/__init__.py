"""What somebody would write who knows the client well and promises nothing beyond it."""
