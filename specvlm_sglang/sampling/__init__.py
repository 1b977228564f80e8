"""What a request's sampling parameters mean at every node of a draft tree.

`parameters` says which of them matter, `penalties` judges nodes by what their ancestors emit,
`emitted` keeps what each request row has emitted, on the device.
"""
