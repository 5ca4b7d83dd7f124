"""IconBench: eleven tasks over emoji drawings, with the drawings' styles as domains."""
