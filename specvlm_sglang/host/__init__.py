"""What we rely on in SGLang: the contract table and the hooks into its private parts."""
