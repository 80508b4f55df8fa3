"""What models cost: as .pemn files and otherwise (`pemn report`).

`costs` measures one model, `forms` and `peers` what its tensors take in other forms; `table` and
`page` show several models side by side.
"""
