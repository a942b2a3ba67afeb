#!/bin/sh
# A C project in a guest: project FILES BUILDS. It is built without optimization, a file at a time, then BUILDS times
# with it by "make -j4"; the programs must print the same. Ends with "project: " and what they print.
mkdir /tmp/tree && cd /tmp/tree || exit 1
for i in $(seq "$1"); do
	echo "unsigned f$i(unsigned a){unsigned s=a;for(unsigned i=0;i<a;i++){s+=i*$i;if(s>$i)s-=s%7;else s^=i<<2;}return s;}" >f$i.c
done
(echo '#include <stdio.h>'; seq "$1" | sed 's/.*/unsigned f&(unsigned);/'
 echo 'int main(void){unsigned t=0;'; seq "$1" | sed 's/.*/t=t*31+f&(&+50);/'; echo 'printf("%u",t);}') >main.c
(echo 'OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))'; echo 'all: $(OBJECTS); gcc -o all $(OBJECTS)'
 echo '%.o: %.c; gcc $(OPT) -c $< -o $@') >Makefile
make -s OPT=-O0 && ./all >expected || exit 1
for i in $(seq "$2"); do
	rm -f *.o all
	make -s -j4 OPT=-O2 && ./all | cmp - expected || exit 1
done
echo "project: $(cat expected)"
