"""What keeps every answer the target's own, whatever a request asks of its sampling.

`penalties` judges the nodes of a draft tree by what their ancestors emit, `emitted` keeps what each
request row has emitted, on the device.
"""
