"""Ways in which one side teaches the other: one folder each, with a client half and a server half."""  # noqa: E501
