"What makes the book: the site, its look, and the record of what each chapter was made of."
