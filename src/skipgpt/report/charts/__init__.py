"""Charts and maps, for pages, pictures and terminals."""
