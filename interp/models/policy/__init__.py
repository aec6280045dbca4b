"""A small vision-language-action policy: words, items or image patches and the state of the hand go
in, action tokens come out."""
