"""What models cost: as .pemn files and otherwise (`pemn report`).

`costs` measures one model; `forms` what its tensors take in other forms, which `dense_forms`,
`sparse_forms` and `peers` make. `columns` names every number once; `table`, `page` and `figures`
show several models side by side.
"""
