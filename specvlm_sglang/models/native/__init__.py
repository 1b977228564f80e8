"""Model classes and processors that SGLang lacks, one folder a family."""
