"""How a Hugging Face decoder gets routers: families, the routed layer, its executions, surgery."""
