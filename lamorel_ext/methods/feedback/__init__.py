"""The feedback edge: the student's advantage says whether guidance was better or worse (Gu 2024)."""  # noqa: E501
